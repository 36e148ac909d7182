"""Health and metrics, over HTTP, from the same event loop that does the work: when that hangs, so does this."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from limbeck_operator.metrics import Metrics


class Server:
    """Answers /healthz, /readyz and /metrics.

    Args:
        port: to listen on; 0 takes a free one.
        metrics: to show.
        ready: whether the caches are filled.
        alive: what is wrong, if something is.
    """

    def __init__(
        self, port: int, metrics: Metrics, *, ready: Callable[[], bool], alive: Callable[[], str | None]
    ) -> None:
        self.port = port
        self._metrics, self._ready, self._alive = metrics, ready, alive
        application = web.Application()
        application.add_routes(
            [web.get("/healthz", self._health), web.get("/readyz", self._readiness), web.get("/metrics", self._show)]
        )
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        """Begin to answer."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, port=self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Answer no more."""
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        wrong = self._alive()
        return web.Response(status=200 if wrong is None else 503, text=f"{wrong or 'ok'}\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "the caches are not filled yet\n")

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})
