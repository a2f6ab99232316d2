//! Scripts that the server runs as one step, called by their hash and sent in full where it is not known.

use redis::{Arg, Cmd, ToRedisArgs, cmd};

/// A script in Lua.
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

/// What a script is called with: keys of one bucket, and arguments.
#[derive(Default)]
pub(super) struct Call {
    key_count: usize,
    keys: Cmd,
    arguments: Cmd,
}

impl Call {
    pub(super) fn key(&mut self, key: &str) -> &mut Self {
        self.key_count += 1;
        self.keys.arg(key);
        self
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.arguments.arg(argument);
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
    command.arg(script).arg(call.key_count);
    for part in call.keys.args_iter().chain(call.arguments.args_iter()) {
        // A cursor is no part of a call.
        if let Arg::Simple(bytes) = part {
            command.arg(bytes);
        }
    }
    command
}
