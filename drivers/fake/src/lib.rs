//! Tandem driver: the model used by simulations.
