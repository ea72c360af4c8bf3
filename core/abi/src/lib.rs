//! The frozen binary interface between Tandem and its drivers.
