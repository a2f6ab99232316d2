"""Object stores: moto stands in for S3, azurite for Azure Blob Storage. Each has one bucket, `lake`."""

import base64
import email.utils
import hashlib
import hmac
import os
import pathlib
import secrets

from part import LOOPBACK, NotYet, Part, http

BUCKET = "lake"
ACCOUNT = "drone"
REGION = "us-east-1"
# moto checks no signature, but clients want to make one.
S3_KEY = "local"
AZURE_VERSION = "2021-12-02"


class S3(Part):
    """moto keeps everything in memory: what a kill leaves is an empty bucket. It is here for the protocol."""

    name = "s3"
    meaning = "S3 by moto, in memory"
    needs = ("python",)

    def ports(self):
        return [self.place.base + 50]

    def command(self):
        return [self.tools.python, pathlib.Path(__file__).with_name("s3_server.py"), LOOPBACK, str(self.port)]

    def options(self):
        return {"cwd": self.folder}

    def check(self):
        if http("GET", self.url()) != 200:
            raise NotYet("moto says no")

    def settle(self):
        bucket = f"{self.url()}/{BUCKET}"
        if http("HEAD", bucket) != 200 and (status := http("PUT", bucket)) != 200:
            raise self.process.failure(f"the bucket {BUCKET} cannot be made: {status}")

    def url(self):
        return f"http://{LOOPBACK}:{self.port}"

    def environment(self):
        # The names that every S3 client reads: in this shell they point all of them here.
        return {
            "TEST_S3_URL": f"s3://{BUCKET}",
            "AWS_ENDPOINT": self.url(),
            "AWS_ACCESS_KEY_ID": S3_KEY,
            "AWS_SECRET_ACCESS_KEY": S3_KEY,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }


class Azure(Part):
    """azurite writes blobs to disk and its index every few seconds: a kill may lose the last ones."""

    name = "azure"
    meaning = "Azure Blob Storage by azurite"
    needs = ("azurite",)

    def ports(self):
        return [self.place.base + 60]

    def key(self):
        return self.place.secret("azure", lambda: base64.b64encode(secrets.token_bytes(64)).decode())

    def command(self):
        return [self.tools.node(), self.tools.azurite, "--blobHost", LOOPBACK, "--blobPort", str(self.port),
                "--location", self.folder, "--silent", "--disableTelemetry", "--skipApiVersionCheck"]

    def options(self):
        return {"cwd": self.folder, "env": {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key()}"}}

    def check(self):
        # Any answer is one: without a signature it is 4xx.
        http("GET", self.url())

    def settle(self):
        status = self._create_container()
        # 409: it is there.
        if status not in (201, 409):
            raise self.process.failure(f"the container {BUCKET} cannot be made: {status}")

    def _create_container(self):
        """PUT of a container, signed with the shared key."""
        date = email.utils.formatdate(usegmt=True)
        # The account is in it twice: as the signer's, and in the path of a server without account host names.
        signed = "\n".join(["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{AZURE_VERSION}",
                            f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}", "restype:container"])
        key = base64.b64decode(self.key())
        signature = base64.b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).decode()
        return http("PUT", f"{self.url()}/{BUCKET}?restype=container",
                    {"x-ms-date": date, "x-ms-version": AZURE_VERSION,
                     "Authorization": f"SharedKey {ACCOUNT}:{signature}"})

    def url(self):
        return f"http://{LOOPBACK}:{self.port}/{ACCOUNT}"

    def environment(self):
        return {
            "TEST_AZURE_URL": f"az://{BUCKET}",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key(),
            "AZURE_STORAGE_ENDPOINT": self.url(),
            "AZURE_ALLOW_HTTP": "true",
        }
