//! The behaviour suite every Tandem driver must pass.
