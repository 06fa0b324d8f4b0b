use super::*;
use crate::time::Timestamp;

fn caller(name: &str, role: Role) -> Caller {
    Caller { principal: Principal::new(name).unwrap(), role }
}

fn who(name: &str) -> Principal {
    Principal::new(name).unwrap()
}

fn role(actions: &[&str], not_actions: &[&str]) -> Result<CustomRole, Invalid> {
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    let file = RoleFile {
        name: "ops".to_owned(),
        actions: words(actions),
        not_actions: words(not_actions),
        ..RoleFile::default()
    };
    CustomRole::new(file, who("root"), Timestamp::from_millis(1))
}

/// The table of roles and actions, row by row: what each may do at all.
#[test]
fn the_matrix_of_roles_and_permissions() {
    use Permission as P;
    // Admin, compute operator, data scientist, reader.
    let rows: &[(&[P], [bool; 4])] = &[
        (&[P::ManageTokens, P::ReadAudit], [true, false, false, false]),
        (&[P::DrainCompute, P::ScaleCompute, P::JoinNodes], [true, true, false, false]),
        (&[P::ManageCompute, P::DeleteCompute], [true, false, false, false]),
        (&[P::ManageDatastores, P::DeleteDatastores, P::WriteSecrets], [true, false, false, false]),
        (&[P::ManageVault, P::ManageRetention, P::ChangeAny], [true, false, false, false]),
        (&[P::Submit, P::WriteContent], [true, false, true, false]),
        (&[P::CancelJob], [true, true, true, false]),
        (&[P::CancelAny], [true, true, false, false]),
        (&[P::ReadWorkspace, P::ReadComputes, P::ReadJobs], [true, true, true, true]),
        (&[P::ReadRuns, P::ReadData, P::ReadContent], [true, false, true, true]),
        (&[P::ReadDatastores, P::ReadAssets, P::ReadSecrets], [true, false, true, true]),
        (&[P::ReadEnvironments, P::ReadComponents], [true, false, true, true]),
        (&[P::WriteRun, P::EnterJob, P::WriteData, P::ChangeJob], [true, false, true, false]),
        (&[P::TestDatastores, P::WriteAssets, P::DeleteAssets], [true, false, true, false]),
        (&[P::WriteEnvironments, P::BuildEnvironments], [true, false, true, false]),
        (&[P::WriteComponents, P::DeleteComponents], [true, false, true, false]),
        (&[P::ActAsNode], [false, false, false, false]),
    ];
    let mut seen = Permissions::NONE;
    for (permissions, expected) in rows {
        for permission in *permissions {
            assert!(!seen.has(*permission), "{permission} stands there twice");
            seen = seen.with(*permission);
            for (role, expected) in Role::BUILTIN.iter().zip(expected) {
                let may = role.permissions().has(*permission);
                assert_eq!(may, *expected, "{role} {permission}");
            }
        }
    }
    assert_eq!(seen.iter().count(), P::ALL.len(), "a permission has no row");
}

#[test]
fn an_action_has_one_name_and_a_permission_is_found_by_it() {
    for permission in Permission::ALL {
        let name = permission.name();
        assert_eq!(Permission::named(name), Ok(*permission));
        let azure = format!("microsoft.machinelearningservices/{}", name.to_uppercase());
        assert_eq!(Permission::named(&azure), Ok(*permission), "{azure}");
        assert!(name.starts_with("workspaces/"), "{name}");
    }
    let wrong = Permission::named("workspaces/job/write").unwrap_err();
    assert_eq!(wrong.similar, Some("workspaces/jobs/write"));
    assert!(wrong.to_string().contains("did you mean 'workspaces/jobs/write'"), "{wrong}");
    assert_eq!(Permission::named("").unwrap_err().similar, None);
    let long = Permission::named(&"x".repeat(10_000)).unwrap_err();
    assert!(long.to_string().len() < 300);
}

#[test]
fn roles_are_known_by_azure_s_names_too() {
    for (name, role) in [
        ("admin", Role::Admin),
        ("Owner", Role::Admin),
        ("compute-operator", Role::ComputeOperator),
        ("AzureML Compute Operator", Role::ComputeOperator),
        ("azureml_compute_operator", Role::ComputeOperator),
        ("data-scientist", Role::DataScientist),
        ("data_scientist", Role::DataScientist),
        ("AzureML Data Scientist", Role::DataScientist),
        ("READER", Role::Reader),
    ] {
        assert_eq!(Role::builtin(name), Some(role), "{name}");
    }
    for name in ["", "contributor", "node", "attempt", "root", "compute operators"] {
        assert_eq!(Role::builtin(name), None, "{name}");
    }
    assert_eq!(Role::ComputeOperator.azure_name(), Some("AzureML Compute Operator"));
}

#[test]
fn what_is_somebody_s_own() {
    let (ana, ben) = (who("ana"), who("ben"));
    let admin = caller("root", Role::Admin);
    // An admin changes what others made, and neither enters their jobs nor writes to their runs.
    assert!(admin.owns(&ana, "") && !admin.is_own(&ana, "") && admin.is_own(&who("root"), ""));
    let scientist = caller("ana", Role::DataScientist);
    assert!(scientist.owns(&ana, "") && !scientist.owns(&ben, ""));
    assert!(scientist.may_cancel(&ana) && !scientist.may_cancel(&ben));
    let operator = caller("olga", Role::ComputeOperator);
    assert!(operator.may_cancel(&ana) && !operator.owns(&ana, ""));
    let reader = caller("ana", Role::Reader);
    assert!(!reader.owns(&ana, "") && !reader.may_cancel(&ana));
    let node = caller("node:n", Role::Node(NodeName::new("n").unwrap()));
    assert!(!node.owns(&who("node:n"), "") && !node.may_cancel(&ana));
    let scope = AttemptScope {
        job: JobName::new("j").unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    };
    let attempt = caller("attempt:j/1", Role::Attempt(scope));
    assert!(attempt.owns(&ana, "j") && !attempt.owns(&ana, "k") && attempt.is_own(&ana, "j"));
}

#[test]
fn nobody_gives_what_they_do_not_have() {
    let node = Role::Node(NodeName::new("n").unwrap());
    let admin = caller("root", Role::Admin);
    for role in Role::BUILTIN {
        assert!(admin.may_grant(role), "{role}");
        for other in [Role::ComputeOperator, Role::DataScientist, Role::Reader] {
            assert!(!caller("x", other.clone()).may_grant(role), "{other} gives {role}");
        }
    }
    assert!(admin.may_grant(&node));
    assert!(caller("olga", Role::ComputeOperator).may_grant(&node));
    assert!(!caller("ana", Role::DataScientist).may_grant(&node));
    // One who may manage users, and otherwise only read, makes readers and no more.
    let keeper = role(&["workspaces/roleAssignments/write", "*/read"], &[]).unwrap().held();
    let keeper = caller("kim", keeper);
    assert!(keeper.may_grant(&Role::Reader) && !keeper.may_grant(&Role::DataScientist));
    assert!(!keeper.may_grant(&Role::Admin));
}

#[test]
fn a_token_does_no_more_than_its_user() {
    assert_eq!(Role::Reader.within(&Role::Admin), Role::Reader);
    assert_eq!(Role::Admin.within(&Role::Reader), Role::Reader);
    assert_eq!(Role::DataScientist.within(&Role::DataScientist), Role::DataScientist);
    let both = Role::ComputeOperator.within(&Role::DataScientist);
    let own = Role::ComputeOperator.permissions();
    assert_eq!(both.permissions(), own.and(Role::DataScientist.permissions()));
    assert!(both.permissions().has(Permission::CancelJob));
    assert!(!both.permissions().has(Permission::CancelAny));
}

#[test]
fn a_custom_role_is_what_it_lists_less_what_it_takes_out() {
    use Permission as P;
    let jobs = role(&["workspaces/jobs/*"], &["workspaces/jobs/cancelAny/action"]).unwrap();
    let found: Vec<P> = jobs.permissions().iter().collect();
    assert_eq!(found, [P::ReadJobs, P::Submit, P::CancelJob, P::ChangeJob, P::EnterJob]);
    let all = role(&["*"], &[]).unwrap().permissions();
    assert_eq!(all, Role::Admin.permissions());
    let reads = role(&["Microsoft.MachineLearningServices/workspaces/*/READ"], &[]).unwrap();
    assert!(reads.permissions().iter().all(|p| p.name().ends_with("/read")));
    assert!(reads.permissions().has(P::ReadRuns) && !reads.permissions().has(P::ReadWorkspace));

    let said = |made: Result<CustomRole, Invalid>| made.unwrap_err().to_string();
    assert!(said(role(&[], &[])).starts_with("actions: is empty"));
    assert!(said(role(&["*"], &["*"])).starts_with("not_actions: takes out all"));
    assert!(said(role(&["workspaces/job/write"], &[])).contains("did you mean"));
    assert!(said(role(&["*"], &["workspaces/nothing/*"])).starts_with("not_actions: there is no"));
    // Nobody becomes a node by a role.
    assert!(role(&["workspaces/nodes/*"], &[]).is_err());
    assert!(said(role(&["workspaces/nodes/session/action"], &[])).contains("takes out"));
    let many = vec!["*"; 201];
    assert!(said(role(&many, &[])).contains("at most 200"));
    for name in ["admin", "Owner", "node", "AzureML-Data-Scientist", "a b", ""] {
        let file = RoleFile {
            name: name.to_owned(),
            actions: vec!["*".to_owned()],
            ..RoleFile::default()
        };
        let made = CustomRole::new(file, who("root"), Timestamp::from_millis(1));
        assert!(made.unwrap_err().to_string().starts_with("name: "), "{name}");
    }
}

/// What is stored of a custom role's holder allows nothing until the door has looked it up.
#[test]
fn a_stored_role_is_a_name() {
    let held = role(&["*"], &[]).unwrap().held();
    let text = serde_json::to_string(&held).unwrap();
    assert_eq!(text, r#"{"custom":{"name":"ops"}}"#);
    let read: Role = serde_json::from_str(&text).unwrap();
    assert!(read.permissions().is_empty());
    assert_eq!(serde_json::to_string(&Role::ComputeOperator).unwrap(), r#""compute_operator""#);
}

#[test]
fn why_somebody_may_or_may_not() {
    let ana = caller("ana", Role::DataScientist);
    let yes = can(&ana, Permission::CancelJob);
    assert!(yes.allowed);
    let reason = "ana has the role data-scientist, which may cancel jobs, of its own jobs";
    assert_eq!(&*yes.reason, reason);
    let no = can(&ana, Permission::ManageTokens);
    assert!(!no.allowed && no.reason.contains("may not manage users"), "{}", no.reason);
}
