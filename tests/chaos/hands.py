"""Whether a process had work in hand, seen from outside: it had read past an offset that is not committed."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from aos.codecs.settings import Settings
from aos.codecs.topics import TOPICS, inbox, tenant_topic
from aos.streams.topology import GROUPS, PROCESSORS

Ends = dict[tuple[str, str, int], int]


class InHand:
    """The ends of a process's inputs, then a moment in which an idle one reads them, then SIGSTOP (the caller's):
    what was appended before that moment and is not committed now is in its hands."""

    READ_S = 0.05
    TRIES = 40

    def __init__(self, settings: Settings, services: Sequence[str]) -> None:
        self._settings = settings
        self._consumers: dict[str, Consumer] = {}
        self._places: dict[str, dict[str, list[TopicPartition]]] = {}  # process -> group -> places
        for group, names in GROUPS.items():
            self._places[f"worker-{group}-0"] = {name: self._inputs(name) for name in names}
        for name in services:
            topic = settings.prefix + inbox(name)
            places = [TopicPartition(topic, number) for number in range(settings.inbox_partitions)]
            self._places[f"service-{name}"] = {f"service.{name}": places}

    def _inputs(self, processor: str) -> list[TopicPartition]:
        settings, places = self._settings, []
        for topic in PROCESSORS[processor].reads:
            tenants = settings.tenants if TOPICS[topic].per_tenant else ("default",)
            count = settings.partitions if TOPICS[topic].spread else 1
            for tenant in tenants:
                name = settings.prefix + tenant_topic(topic, tenant)
                places += [TopicPartition(name, number) for number in range(count)]
        return places

    def _consumer(self, group: str) -> Consumer:
        if group not in self._consumers:
            config = {
                "bootstrap.servers": self._settings.bootstrap,
                "group.id": f"{self._settings.prefix}aos.{group}",
            }
            self._consumers[group] = Consumer(config)
        return self._consumers[group]

    def ends(self, process: str) -> Ends:
        """The ends of its inputs now, of those that the broker tells."""
        found: Ends = {}
        for group, places in self._places[process].items():
            for place in places:
                try:
                    end = self._consumer(group).get_watermark_offsets(place, timeout=10)[1]
                except KafkaException:
                    continue  # not made yet, or the broker is away: then nothing is proven, and nothing counts
                found[group, place.topic, place.partition] = end
        return found

    def results(self) -> int | None:
        """How many messages of results there are; None where the broker does not say."""
        settings, found = self._settings, 0
        try:
            for tenant in settings.tenants:
                name = settings.prefix + tenant_topic("aos.results", tenant)
                for number in range(settings.partitions):
                    place = TopicPartition(name, number)
                    found += self._consumer("store").get_watermark_offsets(place, timeout=10)[1]
        except KafkaException:
            return None
        return found

    def has(self, process: str, ends: Ends) -> bool:
        """Whether the group has not committed all of that; False where the broker does not say."""
        return self._left(process, ends) is True

    def all_ends(self, process: str) -> Ends | None:
        """The ends of all its inputs now; None where the broker does not tell one of them."""
        found = self.ends(process)
        return found if len(found) == sum(map(len, self._places[process].values())) else None

    def done(self, process: str, ends: Ends) -> bool:
        """Whether the group has committed all of that, and the broker says so."""
        return self._left(process, ends) is False

    def _left(self, process: str, ends: Ends) -> bool | None:
        """Whether anything of that is not committed; None where the broker does not say."""
        try:
            return any(
                ends.get((group, place.topic, place.partition), 0) > max(0, place.offset)
                for group, places in self._places[process].items()
                for place in self._consumer(group).committed(places, timeout=10)
            )
        except KafkaException:
            return None

    def close(self) -> None:
        for consumer in self._consumers.values():
            consumer.close()
