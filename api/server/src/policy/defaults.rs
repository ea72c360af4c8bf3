//! Manila's rule names and their defaults (2026.1, "secure RBAC" defaults).
//!
//! Names of calls that Tandem does not serve yet are known too, so that one policy file serves both.

/// The helper rules that the others lean on.
const HELPERS: &[(&str, &str)] = &[
    ("project-admin", "role:admin and project_id:%(project_id)s"),
    ("project-member", "role:member and project_id:%(project_id)s"),
    ("project-reader", "role:reader and project_id:%(project_id)s"),
    ("owner-user", "user_id:%(user_id)s and project_id:%(project_id)s"),
    ("admin_or_service_api", "role:admin or role:service"),
    ("context_is_admin", "role:admin"),
    ("context_is_host_admin", "role:admin and project_id:%(project_id)s"),
    ("admin_or_owner", "is_admin:True or project_id:%(project_id)s"),
    ("admin_or_owner_user", "is_admin:True or project_id:%(project_id)s and user_id:%(user_id)s"),
    ("default", "rule:admin_or_owner"),
    ("admin_api", "is_admin:True"),
];

const GROUPS: &[(&str, &[(&str, &str)])] = &[
    ("rule:context_is_admin", ADMIN),
    ("(rule:context_is_admin) or (rule:project-member)", MEMBER),
    ("(rule:context_is_admin) or (rule:project-reader)", READER),
    // Tandem's own API, /v1: about the whole system.
    ("rule:context_is_admin or (role:reader and system_scope:all)", &[("tandem", "read")]),
    ("rule:context_is_admin or (role:admin and system_scope:all)", &[("tandem", "operate")]),
    ("rule:admin_or_service_api", &[("resource_lock", "get_all_projects")]),
    ("(rule:admin_or_service_api) or (rule:project-member)", &[("resource_lock", "create")]),
    ("(rule:admin_or_service_api) or (rule:project-reader)", &[("resource_lock", "get get_all")]),
    (
        "(rule:owner-user or rule:admin_or_service_api)",
        &[("resource_lock", "update delete bypass_locked_show_action")],
    ),
];

/// Every rule: its name and check string.
pub(super) fn rules() -> impl Iterator<Item = (String, &'static str)> {
    let helpers = HELPERS.iter().map(|(name, check)| ((*name).to_owned(), *check));
    let calls = GROUPS.iter().flat_map(|(check, resources)| {
        resources.iter().flat_map(move |(resource, actions)| {
            actions.split(' ').map(move |action| (format!("{resource}:{action}"), *check))
        })
    });
    helpers.chain(calls)
}

#[rustfmt::skip] // one resource a line
const ADMIN: &[(&str, &str)] = &[
    ("qos_type", "create update delete"),
    ("qos_type_specs", "create index show update delete"),
    ("quota_class_set", "update"),
    ("quota_set", "update delete"),
    ("scheduler_stats:pools", "index detail"),
    ("security_service", "get_all_security_services"),
    ("service", "index update ensure_shares"),
    ("share", "create_public_share set_public_share force_delete manage unmanage list_by_host"),
    ("share", "list_by_share_server_id force_extend extend_beyond_max_share_size_spec migration_start"),
    ("share", "migration_complete migration_cancel migration_get_progress reset_task_state"),
    ("share", "reset_status list_shares_in_deferred_deletion_states list_all_projects"),
    ("share", "update_admin_only_metadata"),
    ("share_backup", "get_all_project reset_status"),
    ("share_export_location", "update_admin_only_metadata"),
    ("share_group", "force_delete reset_status"),
    ("share_group_snapshot", "force_delete reset_status"),
    ("share_group_type", "create delete list_project_access add_project_access remove_project_access"),
    ("share_group_types_spec", "create index show update delete"),
    ("share_instance", "index show force_delete reset_status"),
    ("share_instance_export_location", "index show"),
    ("share_network", "reset_status get_all_share_networks show_network_details"),
    ("share_replica", "force_delete resync reset_replica_state reset_status"),
    ("share_server", "index show details delete manage_share_server unmanage_share_server reset_status"),
    ("share_server", "share_server_migration_start share_server_migration_check"),
    ("share_server", "share_server_migration_complete share_server_migration_cancel"),
    ("share_server", "share_server_migration_get_progress share_server_reset_task_state"),
    ("share_snapshot", "list_all_projects force_delete manage_snapshot unmanage_snapshot reset_status"),
    ("share_snapshot", "list_snapshots_in_deferred_deletion_states"),
    ("share_snapshot_instance", "show index detail reset_status"),
    ("share_snapshot_instance_export_location", "index show"),
    ("share_transfer", "get_all_tenant"),
    ("share_type", "create update delete list_project_access add_project_access remove_project_access"),
    ("share_types_extra_spec", "create show index update delete"),
];

#[rustfmt::skip]
const MEMBER: &[(&str, &str)] = &[
    ("message", "delete"),
    ("security_service", "create update delete"),
    ("share", "create update delete soft_delete restore extend shrink revert_to_snapshot allow_access"),
    ("share", "deny_access update_share_metadata delete_share_metadata create_snapshot delete_snapshot"),
    ("share", "snapshot_update"),
    ("share_access_metadata", "update delete"),
    ("share_access_rule", "update"),
    ("share_backup", "create restore update delete"),
    ("share_export_location", "update_metadata delete_metadata"),
    ("share_group", "create update delete"),
    ("share_group_snapshot", "create update delete"),
    ("share_network", "create update delete add_security_service add_security_service_check"),
    ("share_network", "remove_security_service update_security_service update_security_service_check"),
    ("share_network", "subnet_create_check"),
    ("share_network_subnet", "create delete update_metadata delete_metadata"),
    ("share_replica", "create delete promote update_metadata delete_metadata get_metadata"),
    ("share_snapshot", "allow_access deny_access update_metadata delete_metadata"),
    ("share_transfer", "create accept delete"),
];

#[rustfmt::skip]
const READER: &[(&str, &str)] = &[
    ("availability_zone", "index"),
    ("message", "get get_all"),
    ("qos_type", "show index"),
    ("quota_class_set", "show"),
    ("quota_set", "show"),
    ("security_service", "show detail index"),
    ("share", "get get_all access_get access_get_all get_share_metadata"),
    ("share_access_rule", "get index"),
    ("share_backup", "get get_all"),
    ("share_export_location", "index show get_metadata"),
    ("share_group", "get get_all"),
    ("share_group_snapshot", "get get_all"),
    ("share_group_type", "index show default"),
    ("share_network", "show index detail"),
    ("share_network_subnet", "show index get_metadata"),
    ("share_replica", "get_all show"),
    ("share_replica_export_location", "index show"),
    ("share_snapshot", "get_snapshot get_all_snapshots access_list get_metadata"),
    ("share_snapshot_export_location", "index show"),
    ("share_transfer", "get_all get"),
    ("share_type", "show index default"),
];
