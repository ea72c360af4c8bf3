//! Scenarios, simulations, benchmarks and end-to-end tests.
