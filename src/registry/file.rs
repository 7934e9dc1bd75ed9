//! GoFrame's file registry, followed.
