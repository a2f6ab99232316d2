//! Scripts that the server runs as one step, called by their hash and sent in full where it is not known.

use redis::{Cmd, ToRedisArgs, cmd};

/// A script in Lua.
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

/// What a script is called with: keys of one bucket, and arguments.
#[derive(Default)]
pub(super) struct Call {
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl Call {
    pub(super) fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    pub(super) fn by_name(&self, call: &Call) -> Cmd {
        command("EVALSHA", &self.hash, call)
    }

    pub(super) fn in_full(&self, call: &Call) -> Cmd {
        command("EVAL", self.text, call)
    }
}

fn command(name: &str, script: &str, call: &Call) -> Cmd {
    let mut command = cmd(name);
    command.arg(script).arg(call.keys.len());
    for key in &call.keys {
        command.arg(key);
    }
    for argument in &call.arguments {
        command.arg(argument);
    }
    command
}
