//! Slices that store a single element without an allocation.

use std::ops::Deref;
use std::slice;

/// An owned slice that stores a single element inline; most keys have one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum OneOrMany<T> {
    /// One element, stored inline.
    One([T; 1]),
    /// No element, or several elements.
    Many(Box<[T]>),
}

impl<'a, T> IntoIterator for &'a OneOrMany<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> From<Vec<T>> for OneOrMany<T> {
    fn from(elements: Vec<T>) -> Self {
        match <[T; 1]>::try_from(elements) {
            Ok(one) => Self::One(one),
            Err(elements) => Self::Many(elements.into()),
        }
    }
}

impl<T> Deref for OneOrMany<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}
