"""A local Solana chain: JSON-RPC (HTTP and WebSocket) over the real SVM of `solders.litesvm`.

`chain` is the chain, `rpc` the methods, `server` the ASGI application, `process` runs it as a subprocess.
Start one by hand with `python -m infra.devnet.svm --port 8899`.
"""

from infra.devnet.svm.process import SvmServer, SvmServerError

__all__ = ["SvmServer", "SvmServerError"]
