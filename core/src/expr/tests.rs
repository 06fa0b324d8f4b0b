use super::*;

fn values() -> Values {
    Values {
        inputs: [
            ("data".to_owned(), Some("/mnt/data".to_owned())),
            ("epochs".to_owned(), Some("5".to_owned())),
            ("seed".to_owned(), None),
        ]
        .into(),
        outputs: [("model".to_owned(), "/mnt/model".to_owned())].into(),
        ..Values::default()
    }
}

/// Renders `template` over [`values`]; an error is shown with the text it points at.
fn rendered(template: &str) -> String {
    let fault = |error: Error| format!("[{}] {error}", &template[error.span.clone()]);
    match Template::parse(template) {
        Err(error) => fault(error),
        Ok(parsed) => parsed.render(&values()).unwrap_or_else(fault),
    }
}

#[test]
fn renders_references_and_optional_parts() {
    for (template, expected) in [
        ("", ""),
        ("echo $HOME $$ ${X} $[1+2] $", "echo $HOME $$ ${X} $[1+2] $"),
        ("--data ${{inputs.data}}", "--data /mnt/data"),
        ("${{  inputs.data.path\t}}/a.csv", "/mnt/data/a.csv"),
        ("${{inputs.epochs}}${{outputs.model}}", "5/mnt/model"),
        ("a $[[--seed ${{inputs.seed}}]] b", "a  b"),
        ("a $[[--epochs ${{inputs.epochs}}]] b", "a --epochs 5 b"),
        ("$[[${{inputs.epochs}} ${{inputs.seed}}]]", ""),
        ("$[[ --always ]]", " --always "),
        ("$${{inputs.epochs}}", "$5"),
        ("é${{inputs.epochs}}ü", "é5ü"),
        ("}} ]] {{x}} [[y]]", "}} ]] {{x}} [[y]]"),
    ] {
        assert_eq!(rendered(template), expected, "for {template:?}");
    }
}

#[test]
fn faults_name_the_place_and_the_remedy() {
    for (template, expected) in [
        ("x ${{inputs.data", "[${{] '${{' is never closed: write '}}' after it"),
        ("x $[[ y", "[$[[] '$[[' is never closed: write ']]' after it"),
        ("$[[ a $[[ b ]] ]]", "[$[[] '$[[ … ]]' cannot hold another '$[['"),
        ("${{ }}", "[${{ }}] '${{ }}' names nothing: write for example '${{inputs.data}}'"),
        (
            "${{input.data}}",
            "[${{input.data}}] 'input.data' is not a reference: did you mean 'inputs'?",
        ),
        (
            "${{inputs.data.size}}",
            "[${{inputs.data.size}}] 'inputs.data.size' is not a reference: only '.path' may \
             follow 'inputs.data'",
        ),
        ("${{inputs}}", "[${{inputs}}] 'inputs' is not a reference: write 'inputs.NAME'"),
        (
            "${{inputs.a b}}",
            "[${{inputs.a b}}] 'inputs.a b' is not a reference: 'a b' is not a name; names have \
             letters, digits, '_' and '-', joined by '.'",
        ),
        (
            "é ${{inputs.dta}}",
            "[${{inputs.dta}}] there is no input 'dta': did you mean 'data'? (known inputs: data, \
             epochs, seed)",
        ),
        (
            "${{outputs.other}}",
            "[${{outputs.other}}] there is no output 'other' (known outputs: model)",
        ),
        (
            "$[[ ${{inputs.seed}} ${{inputs.nope}} ]]",
            "[${{inputs.nope}}] there is no input 'nope' (known inputs: data, epochs, seed)",
        ),
        (
            "${{inputs.seed}}",
            "[${{inputs.seed}}] input 'seed' has no value: give it one, or put what needs it into \
             '$[[ … ]]', which is dropped while the input is unset (known inputs: data, epochs, \
             seed)",
        ),
        (
            "${{search_space.lr}}",
            "[${{search_space.lr}}] '${{search_space.lr}}' has a meaning only inside a sweep job",
        ),
        (
            "${{parent.inputs.x}}",
            "[${{parent.inputs.x}}] '${{parent.inputs.x}}' has a meaning only inside a pipeline job",
        ),
        ("${{name}}", "[${{name}}] '${{name}}' has a meaning only in an output's path"),
    ] {
        assert_eq!(rendered(template), expected, "for {template:?}");
    }
}

#[test]
fn output_paths_have_their_own_values() {
    let scope = Values {
        name: Some("brave_fox_1".to_owned()),
        output_name: Some("model".to_owned()),
        default_datastore: Some("workspaceblobstore".to_owned()),
        ..Values::default()
    };
    let path = "azureml://datastores/${{default_datastore}}/paths/x/${{name}}/${{output_name}}/";
    let template = Template::parse(path).unwrap();
    assert_eq!(
        template.render(&scope).unwrap(),
        "azureml://datastores/workspaceblobstore/paths/x/brave_fox_1/model/"
    );
}

#[test]
fn check_reports_every_fault() {
    let template = Template::parse("${{inputs.a}} $[[${{inputs.seed}}]] ${{outputs.b}}").unwrap();
    assert_eq!(template.check(&values(), 9).0.len(), 2);
    assert_eq!(template.references().count(), 3);
}

#[test]
fn check_reports_a_reference_once_and_counts_the_rest() {
    let text = "${{inputs.a}} ${{inputs.a.path}} ${{outputs.a}} ${{inputs.b}} ${{inputs.c}}";
    let (errors, more) = Template::parse(text).unwrap().check(&values(), 2);
    let found: Vec<&str> = errors.iter().map(|error| &text[error.span.clone()]).collect();
    assert_eq!((found.as_slice(), more), (["${{inputs.a}}", "${{outputs.a}}"].as_slice(), 2));
    // In an optional part an unset input is none, outside it is.
    let seeds = Template::parse("$[[${{inputs.seed}}]] ${{inputs.seed}}").unwrap();
    assert_eq!(seeds.check(&values(), 9).0.len(), 1);
}

#[test]
fn a_message_lists_few_names_however_many_there_are() {
    let inputs = (0..1000).map(|i| (format!("input_{i:03}"), None)).collect();
    let scope = Values { inputs, ..Values::default() };
    let message = |text: &str| Template::parse(text).unwrap().render(&scope).unwrap_err();
    assert_eq!(
        message("${{inputs.input_9999}}").to_string(),
        "there is no input 'input_9999': did you mean 'input_999'? (known inputs: input_000, \
         input_001, input_002, input_003, input_004, input_005, input_006, input_007, input_008, \
         input_009 and 990 more)"
    );
    let long = message(&format!("${{{{inputs.{}}}}}", "x".repeat(60_000))).to_string();
    assert!(long.len() < 400, "{long}");
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Text that a template may hold between expressions.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z $\\]}\\[{é]{0,8}",
            "inputs\\.[a-c]".prop_map(|reference| format!("${{{{{reference}}}}}")),
            "outputs\\.[a-c](\\.path)?".prop_map(|reference| format!("${{{{ {reference} }}}}")),
            "[ a-z-]{0,4}inputs\\.[a-c]".prop_map(|text| {
                let (flag, reference) = text.split_at(text.len() - 8);
                format!("$[[{flag}${{{{{reference}}}}}]]")
            }),
        ]
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in "[$\\[\\]{}a-z. \\n\u{e9}]{0,60}") {
            let _ = Template::parse(&text);
        }

        #[test]
        fn display_parses_to_the_same(pieces in proptest::collection::vec(piece(), 0..8)) {
            let text = pieces.concat();
            if let Ok(template) = Template::parse(&text) {
                let again = Template::parse(&template.to_string()).unwrap();
                prop_assert_eq!(template.to_string(), again.to_string());
                let references = |t: &Template| -> Vec<Reference> {
                    t.references().map(|e| e.reference.clone()).collect()
                };
                prop_assert_eq!(references(&template), references(&again));
            }
        }

        #[test]
        fn plain_text_renders_to_itself(text in "[a-z $}\\]é\\n]{0,60}") {
            let template = Template::parse(&text).unwrap();
            prop_assert_eq!(template.references().count(), 0);
            prop_assert_eq!(template.render(&Values::default()).unwrap(), text);
        }
    }
}
