// Initiates one replica set, unless that is done, and waits until it has a primary. Run by `setup` with mongosh, on a
// direct connection to the set's first member. From the environment:
//
//   REPLICA_SET   NAME/HOST:PORT[,HOST:PORT...]: the set and all its members
//   CONFIG_SERVER 1 where the members are config servers
//   DEADLINE_SECONDS how long a primary may take

const NOT_YET_INITIALIZED = 94;
// Another one has begun it in this moment.
const ALREADY_INITIALIZED = 23;
const POLL_MS = 200;

const [name, hosts] = process.env.REPLICA_SET.split("/");
const members = hosts.split(",").map((host, _id) => ({ _id, host }));
const admin = db.getSiblingDB("admin");

function configured() {
  try {
    return admin.runCommand({ replSetGetConfig: 1 }).config;
  } catch (error) {
    if (error.code === NOT_YET_INITIALIZED) return undefined;
    throw error;
  }
}

function initiate() {
  const config = { _id: name, members };
  if (process.env.CONFIG_SERVER === "1") config.configsvr = true;
  try {
    admin.runCommand({ replSetInitiate: config });
  } catch (error) {
    if (error.code !== ALREADY_INITIALIZED) throw error;
  }
}

function waitForPrimary() {
  const deadline = Date.now() + 1000 * Number(process.env.DEADLINE_SECONDS);
  for (;;) {
    const { primary } = admin.runCommand({ hello: 1 });
    if (primary) return primary;
    if (Date.now() > deadline) throw new Error(`${name} has no primary: do its members reach each other by these names?`);
    sleep(POLL_MS);
  }
}

if (!configured()) initiate();
const primary = waitForPrimary();
const { _id, members: present } = configured();
const list = (some) => some.map((member) => member.host).sort().join(",");
if (_id !== name || list(present) !== list(members)) {
  // What runs is not rearranged from here: that is rs.reconfig's, by someone who looks at it.
  throw new Error(`the replica set is ${_id}/${list(present)} already, not ${name}/${list(members)}`);
}
print(`${name}: primary ${primary}`);
