//! Identifiers and the fencing number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// What a user owns: a share or a server. Manila's share id.
    ResourceId
);
uuid_id!(
    /// One placed copy of a resource on one pool. Manila's share instance id, which is also the replica id.
    InstanceId
);
uuid_id!(
    /// The durable operation on whose behalf a call is made; the idempotency key of each of its calls.
    OpId
);
uuid_id!(
    /// A consistent moment that instances share. Made by the manager, so that every driver can name the same moment.
    PointId
);

/// Fencing number of a resource; every promotion raises it. A driver refuses a lower one than it last saw with
/// [`ErrorKind::StaleEpoch`](crate::ErrorKind::StaleEpoch).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch a promotion raises this one to.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Refuses a call that carries a lower epoch than this one, the last that was seen.
    ///
    /// # Errors
    /// [`ErrorKind::StaleEpoch`](crate::ErrorKind::StaleEpoch).
    pub fn admit(self, called: Self) -> Result<(), crate::Error> {
        if called < self { Err(crate::Error::stale_epoch(called, self)) } else { Ok(()) }
    }

    /// Refuses a lower epoch as [`admit`](Self::admit) does, and remembers a higher one. `true` when it rose.
    ///
    /// # Errors
    /// [`ErrorKind::StaleEpoch`](crate::ErrorKind::StaleEpoch); nothing has changed.
    pub fn see(&mut self, called: Self) -> Result<bool, crate::Error> {
        self.admit(called)?;
        let rose = called > *self;
        *self = called;
        Ok(rose)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
