//! etcd, followed by a supervisor.
