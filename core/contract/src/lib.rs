//! Plain data of Tandem's driver contract.
