"""The channel layer, without a clock of its own: a process that nobody wakes sleeps.

Exists because the library's layer asks its connection ten times a second whether there is a message, and for a process
that serves one stream each time costs as much as being woken for a flush of it. Protects the rule that waiting costs
nothing: here the layer waits for the next message, however long that takes. All else is the library's, what it does
when the store goes away and comes back too.
"""

from __future__ import annotations

from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer, RedisSingleShardConnection
from redis.asyncio.client import PubSub


class PatientLayer(RedisPubSubChannelLayer):  # type: ignore[misc]  # channels_redis carries no types
    """``CHANNEL_LAYERS`` names it."""

    def _get_layer(self) -> RedisPubSubLoopLayer:
        layer = super()._get_layer()
        if not all(isinstance(shard, _Shard) for shard in layer._shards):  # it was made right now
            layer._shards = [_Shard(shard.host, layer) for shard in layer._shards]
        return layer


class _Shard(RedisSingleShardConnection):  # type: ignore[misc]
    def _ensure_redis(self) -> None:
        missing = self._redis is None
        super()._ensure_redis()
        if missing:
            self._pubsub = _Patient(self._redis.connection_pool)


class _Patient(PubSub):
    async def get_message(
        self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0
    ) -> dict[str, object] | None:
        """The next message, without the time limit that the library's loop gives."""
        found: dict[str, object] | None = await super().get_message(ignore_subscribe_messages, timeout=None)
        return found
