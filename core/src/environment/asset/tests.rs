use serde_json::json;

use super::*;

fn image(text: &str) -> InlineEnvironment {
    InlineEnvironment { image: Some(text.to_owned()), ..InlineEnvironment::default() }
}

fn draft(made_of: InlineEnvironment) -> Draft {
    Draft {
        name: AssetName::new("train").unwrap(),
        version: None,
        description: None,
        tags: BTreeMap::new(),
        environment: made_of,
    }
}

fn made(draft: Draft) -> EnvironmentVersion {
    let (version, by) = (VersionName::new("1").unwrap(), Principal::new("ana").unwrap());
    draft.made(version, by, Timestamp::from_millis(1))
}

#[test]
fn what_an_environment_is_called_is_no_part_of_what_it_is_made_of() {
    let mut named = image("a");
    named.name = Some("other".to_owned());
    let kept = made(draft(named.clone()));
    assert_eq!(kept.environment.name, None);
    assert!(kept.is_made_of(&named));
    let conda = |json| InlineEnvironment { conda: Some(json), ..InlineEnvironment::default() };
    let kept = made(draft(conda(json!({ "dependencies": ["a"], "name": "x" }))));
    assert!(kept.is_made_of(&conda(json!({ "name": "x", "dependencies": ["a"] }))));
    assert!(!kept.is_made_of(&conda(json!({ "name": "x", "dependencies": ["b"] }))));
}
