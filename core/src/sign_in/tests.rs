use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rules(user_claim: &str, roles: &[(&str, Role)]) -> Rules {
    let to = |name: &str| match name {
        "*" => Group::Everybody,
        name => Group::Named(name.to_owned()),
    };
    Rules {
        user_claim: user_claim.to_owned(),
        user_prefix: String::new(),
        groups_claim: "groups".to_owned(),
        roles: roles
            .iter()
            .map(|(name, role)| Given { to: to(name), role: role.clone() })
            .collect(),
    }
}

fn claims(value: Value) -> Claims {
    match value {
        Value::Object(map) => Claims(map),
        _ => unreachable!("claims are an object"),
    }
}

#[test]
fn the_first_rule_that_fits_gives_the_role() {
    let rules = rules("email", &[("admins", Role::Admin), ("ml", Role::DataScientist)]);
    let who = |groups: Value| {
        rules.admit(&claims(json!({ "email": "ana@example.com", "groups": groups })))
    };
    assert_eq!(who(json!(["ml", "admins"])).unwrap().role, Role::Admin);
    let ana = who(json!(["x", "ml"])).unwrap();
    assert_eq!((ana.principal.as_str(), ana.role), ("ana@example.com", Role::DataScientist));
    assert_eq!(who(json!("ml")).unwrap().role, Role::DataScientist);
    for none in
        [json!([]), json!(["ML", "m", "ml "]), json!(null), json!(7), json!([7, null, ["ml"]])]
    {
        assert!(matches!(who(none), Err(Refused::NoRole { .. })));
    }
}

#[test]
fn whoever_comes_in_brings_the_groups_that_can_be_named_here() {
    let rules = rules("sub", &[("*", Role::Reader)]);
    let who = |groups: Value| rules.admit(&claims(json!({ "sub": "ana", "groups": groups })));
    let ana = who(json!(["/research/vision lab", "ml", "a\nb", "", " x", 7, "ml"])).unwrap();
    let groups: Vec<&str> = ana.groups.iter().map(GroupName::as_str).collect();
    assert_eq!(groups, ["/research/vision lab", "ml"]);
    let many: Vec<String> = (0..=MAX_GROUPS).map(|n| format!("g{n}")).collect();
    assert_eq!(who(json!(many[1..])).unwrap().groups.len(), MAX_GROUPS);
    let told = who(json!(many)).unwrap_err();
    assert!(matches!(told, Refused::TooManyGroups { count: 1001, .. }), "{told}");
}

#[test]
fn nobody_comes_in_where_no_rule_is_and_everybody_where_one_says_so() {
    let ana = claims(json!({ "sub": "ana", "groups": ["*", "admins"] }));
    assert!(matches!(rules("sub", &[]).admit(&ana), Err(Refused::NoRole { .. })));
    assert_eq!(rules("sub", &[("*", Role::Reader)]).admit(&ana).unwrap().role, Role::Reader);
    // A group that is called like the rule for everybody is none.
    let named = Given { to: Group::Named("admins".to_owned()), role: Role::Admin };
    let rules = Rules { roles: vec![named], ..rules("sub", &[]) };
    assert!(rules.admit(&claims(json!({ "sub": "ana", "groups": ["*"] }))).is_err());
}

#[test]
fn an_address_counts_only_where_it_is_the_users() {
    let rules = rules("email", &[("*", Role::Reader)]);
    let with = |verified: Value| {
        rules.admit(&claims(json!({ "email": "a@b.c", "email_verified": verified })))
    };
    for good in [json!(true), json!("true")] {
        with(good).unwrap();
    }
    for bad in [json!(false), json!("false"), json!(null), json!(1), json!("TRUE ")] {
        assert!(matches!(with(bad), Err(Refused::Unverified { .. })));
    }
    rules.admit(&claims(json!({ "email": "a@b.c" }))).unwrap();
}

#[test]
fn names_that_are_impossible_are_refused() {
    let rules = rules("name", &[("*", Role::Admin)]);
    let long = "x".repeat(500);
    for bad in ["", "  ", "a\nb", long.as_str()] {
        assert!(rules.admit(&claims(json!({ "name": bad }))).is_err(), "{bad}");
    }
    assert!(matches!(rules.admit(&claims(json!({ "name": 7 }))), Err(Refused::NoName { .. })));
    let prefixed = Rules { user_prefix: "oidc:".to_owned(), ..rules };
    assert_eq!(
        prefixed.admit(&claims(json!({ "name": "daemon" }))).unwrap().principal.as_str(),
        "oidc:daemon"
    );
}

#[test]
fn groups_that_lie_elsewhere_are_not_taken_for_none() {
    let rules = rules("sub", &[("*", Role::Reader)]);
    let elsewhere = json!({
        "sub": "x",
        "_claim_names": { "groups": "src1" },
        "_claim_sources": { "src1": { "endpoint": "https://graph.example.com" } },
    });
    assert_eq!(rules.admit(&claims(elsewhere)), Err(Refused::GroupsElsewhere));
}

proptest! {
    /// Whatever a provider says, nobody has a role that no rule of theirs gives.
    #[test]
    fn nobody_has_more_than_a_rule_gives(
        user in ".{0,12}",
        groups in proptest::collection::vec("[a-c*]{0,2}", 0..4),
        rules in proptest::collection::vec(("[a-c]{1,2}", 0..3_usize), 0..4),
    ) {
        let roles = [Role::Admin, Role::DataScientist, Role::Reader];
        let given: Vec<(&str, Role)> =
            rules.iter().map(|(group, role)| (group.as_str(), roles[*role].clone())).collect();
        let rules = self::rules("sub", &given);
        if let Ok(found) = rules.admit(&claims(json!({ "sub": user, "groups": groups }))) {
            prop_assert!(given.iter().any(|(group, role)| *role == found.role && groups.iter().any(|g| g == group)));
            prop_assert!(!found.principal.as_str().is_empty());
        }
    }
}
