//! Which index each of the main queries uses.
