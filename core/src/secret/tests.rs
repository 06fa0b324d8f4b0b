use super::*;
use crate::access::Role;

fn named(text: &str) -> SecretName {
    SecretName::new(text).unwrap()
}

fn caller(who: &str, role: Role) -> Caller {
    Caller { principal: Principal::new(who).unwrap(), role }
}

fn entry(version: u32, owner: Option<&str>) -> Entry {
    let owner = owner.map(|who| Principal::new(who).unwrap());
    Entry { name: named("Db-Password"), version: SecretVersion(version), owner }
}

#[test]
fn names_are_those_of_azure_key_vault() {
    for good in ["a", "7", "-", "Db-Password-2", &"x".repeat(127)] {
        assert_eq!(named(good).as_str(), good);
    }
    for bad in ["", "a_b", "a.b", "a/b", "a b", "schlüssel", &"x".repeat(128)] {
        let said = SecretName::new(bad).unwrap_err().to_string();
        assert!(said.contains("secret name") && said.contains("127"), "{said}");
    }
}

#[test]
fn values_have_a_length_from_one_byte_to_the_bound() {
    let name = named("a");
    assert_eq!(check_value(&name, 1), Ok(()));
    assert_eq!(check_value(&name, 25 * 1024), Ok(()));
    assert_eq!(check_value(&name, 0), Err(Refusal::Empty(name.clone())));
    let said = check_value(&name, 25 * 1024 + 1).unwrap_err().to_string();
    assert!(said.contains("25601") && said.contains("25600"), "{said}");
}

#[test]
fn versions_count_up_also_after_a_deletion() {
    let ana = caller("ana", Role::DataScientist);
    let given = next_version(&named("db-password"), None, &ana);
    assert_eq!(given, Ok((named("db-password"), SecretVersion(1))));
    // As it was first written, however it is written now.
    let given = next_version(&named("db-password"), Some(&entry(1, Some("ana"))), &ana);
    assert_eq!(given, Ok((named("Db-Password"), SecretVersion(2))));
    let ben = caller("ben", Role::DataScientist);
    let given = next_version(&named("db-password"), Some(&entry(2, None)), &ben);
    assert_eq!(given, Ok((named("Db-Password"), SecretVersion(3))));
    let last = entry(u32::MAX, None);
    let refused = next_version(&named("db-password"), Some(&last), &ben);
    assert_eq!(refused, Err(Refusal::NoVersionLeft(named("Db-Password"))));
}

#[test]
fn a_secret_is_its_owners_and_the_admins() {
    let known = entry(1, Some("ana"));
    let owner = known.owner.clone().unwrap();
    for (who, role, may) in [
        ("ana", Role::DataScientist, true),
        ("root", Role::Admin, true),
        ("ben", Role::DataScientist, false),
        ("ana", Role::Reader, false),
    ] {
        let caller = caller(who, role);
        assert_eq!(next_version(&known.name, Some(&known), &caller).is_ok(), may, "{caller:?}");
        assert_eq!(check_owner(&known.name, &owner, &caller).is_ok(), may, "{caller:?}");
    }
}

#[test]
fn a_secret_is_used_by_its_owner_an_admin_and_whom_it_was_granted() {
    let known = entry(1, Some("ana"));
    let owner = known.owner.clone().unwrap();
    for (who, role, is_granted, may) in [
        ("ana", Role::DataScientist, false, true),
        ("root", Role::Admin, false, true),
        ("ben", Role::DataScientist, true, true),
        ("ben", Role::DataScientist, false, false),
    ] {
        let caller = caller(who, role);
        let checked = check_use(&known.name, &owner, is_granted, &caller);
        assert_eq!(checked.is_ok(), may, "{caller:?}");
        let said = checked.err().map(|refusal| refusal.to_string()).unwrap_or_default();
        assert!(may || said.contains("atelier secret grant Db-Password --user ben"), "{said}");
    }
}
