//! Everything HTTP: Manila's API, Tandem's own API.
