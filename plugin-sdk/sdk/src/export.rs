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

/// Wires the listed abilities of a driver, and exports it from this library.
///
/// ```ignore
/// tandem_sdk::export_driver!(MyDriver: Replication, Streamed, Attachable);
/// ```
///
/// An ability that is not listed is answered `Unsupported`; one that the capabilities claim and that is not listed
/// makes `open` fail. Exactly one driver per library.
#[macro_export]
macro_rules! export_driver {
    ($driver:ty $(: $($ability:ident),* $(,)?)?) => {
        $crate::wire_driver!($driver $(: $($ability),*)?);

        #[allow(unsafe_code)]
        const _: () = {
            // The name that abi_stable's loader looks for; its own macro would need that crate in every driver.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: $crate::glue::Header = $crate::glue::header::<$crate::glue::Exported<$driver>>();

            #[unsafe(export_name = "tandem_plugin_abi")]
            static PROBE: $crate::glue::Probe = $crate::glue::Probe::new($crate::CONTRACT_VERSION);
        };
    };
}
