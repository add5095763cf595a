"""The fleet. For an agent's author: `Service`, `Work`, `Answer`, `Refuse` are all there is to know.

    from aos.agents import Service, Work

    service = Service("shout")

    @service.agent("upper", capabilities=["uppercase"])
    async def upper(work: Work) -> str:
        return (work.text or "").upper()

    service.run()

Importing this is light: no Faust, no river, and aiokafka only when serving starts.
"""

from aos.agents.sdk.service import Service
from aos.agents.sdk.work import Answer, Refuse, Work

__all__ = ["Answer", "Refuse", "Service", "Work"]
