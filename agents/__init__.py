"""The fleet. For an agent's author: `Service`, `Work`, `Answer`, `Refuse` are all there is to know; who
delegates meets `Delegated` and `DelegationFailed`, who shares a context `ContextConflict`.

    from aos.agents import Service, Work

    service = Service("shout")

    @service.agent("upper", capabilities=["uppercase"])
    async def upper(work: Work) -> str:
        return (work.text or "").upper()

    service.run()

Importing this is light: no Faust, no river, and aiokafka only when serving starts.
"""

from aos.agents.sdk.desk import ContextConflict, Delegated, DelegationFailed, Refuse
from aos.agents.sdk.service import Service
from aos.agents.sdk.work import Answer, Work

__all__ = ["Answer", "ContextConflict", "Delegated", "DelegationFailed", "Refuse", "Service", "Work"]
