//! GoFrame's keys and values, read and written.
