/// One setting: how it is called on the command line and in a file, in the environment, and what it takes.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub(super) name: &'static str,
    pub(super) env: &'static [&'static str],
    pub(super) deprecated: &'static [&'static str],
    pub(super) expects: &'static str,
    pub(super) secret: bool,
}

impl Key {
    /// A setting whose flag is `--<name>`, and whose file key is `name` (dashes and underscores are the same, a dot
    /// enters a table).
    pub const fn new(name: &'static str) -> Self {
        Self { name, env: &[], deprecated: &[], expects: "", secret: false }
    }

    /// Variables that set it, the first one that is set wins.
    pub const fn env(mut self, names: &'static [&'static str]) -> Self {
        self.env = names;
        self
    }

    /// Variables that still set it, after those of [`Key::env`], with a warning that names the new one.
    pub const fn deprecated(mut self, names: &'static [&'static str]) -> Self {
        self.deprecated = names;
        self
    }

    /// What a valid value is, for the error message: "a port, 0 to 65535".
    pub const fn expects(mut self, what: &'static str) -> Self {
        self.expects = what;
        self
    }

    /// Its value is masked wherever the configuration is shown.
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// The name of the setting.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}
