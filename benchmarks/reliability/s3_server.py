"""An S3 server on this machine, moto's, for the programs of this folder."""

import os

from moto.server import ThreadedMotoServer


def start() -> ThreadedMotoServer:
    """Return a running server with an empty bucket named `bucket`, to which the environment directs s3fs."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key",
                   "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    import s3fs

    s3fs.S3FileSystem().mkdir("bucket")
    return server
