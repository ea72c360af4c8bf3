//! Tandem driver: plain folders.
