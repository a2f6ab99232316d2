// Makes a sharded cluster of replica sets, and shards what the services keep in it; what is done already stays. Run by
// `setup` with mongosh, against a mongos. From the environment:
//
//   SHARDS      NAME/HOST:PORT[,HOST:PORT...], separated by spaces
//   COLLECTIONS the file that says what is sharded by which key
//   PACKAGE_DATABASE, LOOKUP_DATABASE: the names in the services' URLs

const fs = require("fs");

const admin = db.getSiblingDB("admin");
const config = db.getSiblingDB("config");
const databases = { package: process.env.PACKAGE_DATABASE, lookup: process.env.LOOKUP_DATABASE };
const collections = JSON.parse(fs.readFileSync(process.env.COLLECTIONS, "utf8"));

if (admin.runCommand({ hello: 1 }).msg !== "isdbgrid") {
  throw new Error("this is no mongos: the shards are set up through one");
}

for (const shard of process.env.SHARDS.split(" ")) {
  // Done already where it is the same.
  admin.runCommand({ addShard: shard, name: shard.split("/")[0] });
}

for (const database of new Set(collections.map(({ service }) => databases[service]))) {
  admin.runCommand({ enableSharding: database });
}

for (const { service, collection, key } of collections) {
  const name = `${databases[service]}.${collection}`;
  // A collection that a service has made may hold documents: then the key's index must be there before.
  db.getSiblingDB(databases[service])[collection].createIndex({ [key]: "hashed" });
  // Refused where the collection is sharded by another key.
  admin.runCommand({ shardCollection: name, key: { [key]: "hashed" } });
  const sharded = config.collections.findOne({ _id: name });
  const chunks = config.chunks.countDocuments({ uuid: sharded.uuid });
  print(`${name}: by ${JSON.stringify(sharded.key)}, ${chunks} chunks`);
}
