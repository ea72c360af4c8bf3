//! Copies one tree or block device onto another, in passes, verified, resumable.
