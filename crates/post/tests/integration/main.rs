//! The program as operators meet it.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::process::{Command, Output, Stdio};

fn post(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_post"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BOXREEL_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn help_names_every_setting_and_its_variable() {
    let help = String::from_utf8(post(&["--help"], &[]).stdout).unwrap();
    for variable in ["BOXREEL_LISTEN", "BOXREEL_MONGO_URI", "BOXREEL_DATA_DIR", "BOXREEL_PRE_URL"] {
        assert!(help.contains(variable), "{variable} in {help}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_in_a_sentence() {
    let folder = std::env::temp_dir().display().to_string();
    for (variables, code, says) in [
        (vec![("BOXREEL_DATADIR", "/mnt")], 2, "did you mean BOXREEL_DATA_DIR?"),
        (vec![("BOXREEL_DATA_DIR", folder.as_str())], 1, "set BOXREEL_MONGO_URI"),
        (vec![("BOXREEL_DATA_DIR", "/no/such/folder")], 1, "mount the shared volume there"),
    ] {
        let output = post(&[], &variables);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
