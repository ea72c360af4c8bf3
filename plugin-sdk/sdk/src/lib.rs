//! All that a vendor needs to write a Tandem driver.
