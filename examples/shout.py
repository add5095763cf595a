"""A service with one agent: run it beside `aos up`, then submit something that requires `uppercase`."""

from aos.agents import Service, Work

service = Service("shouting")


@service.agent("upper", capabilities=["uppercase"], capacity=8, description="makes text loud")
async def upper(work: Work) -> str:
    return (work.text or "").upper()


if __name__ == "__main__":
    service.run()
