"""The local stack: a broker and a database on loopback, child processes that cannot outlive their owner.

`LocalStack` starts and stops both; `Children` is how they, and AOS's own workers, are started and kept.
"""

from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError
from aos.infra.local.stack import LocalStack

__all__ = ["Children", "Host", "LocalStack", "StackError"]
