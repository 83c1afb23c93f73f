use super::*;
use std::path::Path;
use std::time::Duration;

const PORT: Key =
    Key::new("http-port").env(&["DYN_HTTP_PORT"]).deprecated(&["DYNAMO_PORT"]).expects("a port, 0 to 65535");

fn file(text: &str) -> Option<ConfigFile> {
    Some(ConfigFile::parse(Path::new("x.toml"), text).unwrap())
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let env = Env::from([("DYN_HTTP_PORT", "2")]);
    let blank = Env::from([("DYN_HTTP_PORT", " ")]);
    let of = |env: &Env, file, flag| {
        let mut layers = Layers::new(env, file);
        let port = layers.value(&PORT, flag, 4u16).unwrap();
        (port, layers.finish().settings.remove(0).source)
    };
    assert_eq!(of(&env, file("http-port = 3"), Some(1)), (1, Source::Flag("http-port")));
    assert_eq!(of(&env, file("http-port = 3"), None), (2, Source::Env("DYN_HTTP_PORT")));
    let in_file = Source::File { path: "x.toml".into(), key: "http-port" };
    assert_eq!(of(&blank, file("http_port = 3"), None), (3, in_file));
    assert_eq!(of(&blank, file("other = 3"), None), (4, Source::Default));
    assert_eq!(of(&Env::default(), None, None), (4, Source::Default));
}

#[test]
fn a_bad_value_is_an_error_that_names_its_place_and_what_to_give() {
    let env = Env::from([("DYN_HTTP_PORT", "70000")]);
    let error = Layers::new(&env, file("http-port = 3")).value(&PORT, None, 4u16).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("DYN_HTTP_PORT=\"70000\" is not valid for http-port"), "{text}");
    assert!(text.ends_with("give a port, 0 to 65535"), "{text}");

    let none = Env::default();
    let error = Layers::new(&none, file("http-port = true")).value(&PORT, None, 4u16).unwrap_err();
    assert!(error.to_string().starts_with("x.toml: http-port=\"true\""), "{error}");
    let error = Layers::new(&none, file("[[http-port]]\na = 1")).value(&PORT, None, 4u16).unwrap_err();
    assert!(error.to_string().contains("a list may hold only"), "{error}");
}

#[test]
fn a_deprecated_variable_works_and_warns() {
    let env = Env::from([("DYNAMO_PORT", "5")]);
    let mut layers = Layers::new(&env, None);
    assert_eq!(layers.value(&PORT, None, 4u16).unwrap(), 5);
    assert_eq!(layers.finish().warnings, ["DYNAMO_PORT is deprecated: use DYN_HTTP_PORT"]);
}

#[test]
fn unknown_names_warn_and_suggest_the_near_one() {
    let env = Env::from([
        ("DYN_HTTP_PROT", "5"),
        ("DYN_SOMETHING_ELSE", "1"),
        ("DYN_READ_ELSEWHERE", "1"),
        ("PATH", "x"),
    ]);
    let mut layers = Layers::new(&env, file("http-prot = 1\n[log]\nlevel = 'x'"));
    layers.also_known(&["DYN_READ_ELSEWHERE"]);
    layers.value(&PORT, None, 4u16).unwrap();
    assert_eq!(
        layers.finish().warnings,
        [
            "unknown variable DYN_HTTP_PROT is ignored; did you mean DYN_HTTP_PORT?",
            "unknown variable DYN_SOMETHING_ELSE is ignored",
            "unknown key http-prot in x.toml is ignored; did you mean http-port?",
            "unknown key log.level in x.toml is ignored",
        ]
    );
}

#[test]
fn secrets_are_masked_when_printed_and_when_wrong() {
    const TOKEN: Key = Key::new("token").env(&["DYN_TOKEN"]).secret();
    let env = Env::from([("DYN_TOKEN", "hunter2")]);
    let mut layers = Layers::new(&env, None);
    assert_eq!(layers.optional::<String>(&TOKEN, None).unwrap().as_deref(), Some("hunter2"));
    let printed = layers.finish().to_string();
    assert!(
        !printed.contains("hunter2") && printed.contains("token = \"********\" # DYN_TOKEN"),
        "{printed}"
    );
    let error = Layers::new(&env, None).value(&TOKEN, None, 1u8).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn what_is_printed_can_be_read_back() {
    let env = Env::from([("DYN_NAME", "a \"quoted\" name # with = signs")]);
    let name = Key::new("name").env(&["DYN_NAME"]);
    let hosts = Key::new("hosts");
    let wait = Key::new("limits.wait");
    let read = |env: &Env, text: &str| {
        let mut layers = Layers::new(env, file(text));
        let values = (
            layers.optional::<String>(&name, None).unwrap(),
            layers.list(&hosts, Vec::new()).unwrap(),
            layers.seconds(&wait, None, Duration::from_secs(1)).unwrap(),
            layers.switch(&Key::new("quiet"), None, false).unwrap(),
        );
        (values, layers.finish().to_string())
    };
    let (values, printed) = read(&env, "hosts = ['a', 'b']\nquiet = 'ON'\nlimits = { wait = 1.5 }");
    assert_eq!(values.1, ["a", "b"]);
    assert_eq!(values.2, Duration::from_millis(1500));
    assert!(values.3);
    assert_eq!(read(&Env::default(), &printed).0, values);
}

#[test]
fn a_missing_required_value_says_where_to_give_it() {
    let env = Env::default();
    let error = Layers::new(&env, None).required::<u16>(&PORT, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "http-port is not set: give --http-port, or DYN_HTTP_PORT, or http-port in the configuration file"
    );
}

#[test]
fn negative_and_endless_times_are_refused() {
    let env = Env::from([("DYN_WAIT", "-1")]);
    let wait = Key::new("wait").env(&["DYN_WAIT"]);
    assert!(Layers::new(&env, None).seconds(&wait, None, Duration::ZERO).is_err());
    assert!(Layers::new(&env, None).seconds(&wait, Some(f64::INFINITY), Duration::ZERO).is_err());
    assert!(Layers::new(&env, None).seconds(&wait, Some(0.25), Duration::ZERO).is_ok());
    assert!(Layers::new(&env, None).optional_seconds(&wait, None).is_err());
    let half = Some(Duration::from_millis(500));
    assert_eq!(Layers::new(&env, None).optional_seconds(&wait, Some(0.5)).unwrap(), half);
    assert_eq!(Layers::new(&Env::default(), None).optional_seconds(&wait, None).unwrap(), None);
}

#[test]
fn files_that_are_missing_or_malformed_are_named() {
    let error = ConfigFile::read(Path::new("/nonexistent/x.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/x.toml"), "{error}");
    let error = ConfigFile::parse(Path::new("x.toml"), "a = ").unwrap_err();
    assert!(error.to_string().starts_with("the configuration file x.toml is not valid TOML"), "{error}");
}

#[test]
fn truth_has_eight_spellings() {
    for text in ["1", "true", "ON", " Yes "] {
        assert_eq!(parse_bool(text), Ok(true));
    }
    for text in ["0", "FALSE", "off", "no"] {
        assert_eq!(parse_bool(text), Ok(false));
    }
    for text in ["", "2", "y", "enabled"] {
        assert_eq!(parse_bool(text), Err(TruthError));
    }
}
