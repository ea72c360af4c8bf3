//! The macros that wire a driver's abilities and export it.

/// Wires the listed abilities of a driver; the rest is answered `Unsupported`.
///
/// [`export_driver!`](crate::export_driver) does this too. On its own it serves drivers that are linked in process.
#[macro_export]
macro_rules! wire_driver {
    ($driver:ty $(: $($ability:ident),* $(,)?)?) => {
        impl $crate::Wired for $driver {
            const ABILITIES: &'static [$crate::Ability] =
                &[$crate::Ability::Driver $($(, $crate::Ability::$ability)*)?];

            async fn route(
                &self,
                cx: &$crate::OpContext,
                ability: $crate::Ability,
                call: $crate::Incoming,
            ) -> $crate::Result<$crate::Value> {
                match ability {
                    $crate::Ability::Driver => $crate::route::Driver(self, cx, call).await,
                    $($($crate::Ability::$ability => $crate::route::$ability(self, cx, call).await,)*)?
                    #[allow(unreachable_patterns)]
                    other => ::std::result::Result::Err($crate::Error::unsupported(::std::format!(
                        "`{}` needs the ability `{}`, which is not wired",
                        cx.verb(),
                        other.name()
                    ))),
                }
            }
        }
    };
}
