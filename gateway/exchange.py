"""★ The path: one request, from its head to the last byte, every step in order."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from backends.base import Call, Demand
from backends.errors import BackendError, ConnectFailed, NoReplica
from backends.turn import Turn
from gateway import accept, passing
from gateway.account import Account
from gateway.admit import Admission, Permit
from gateway.alarms import Alarms
from gateway.authenticate import Keys, authenticate
from gateway.endpoints.base import Endpoint
from gateway.errors import ClientGone, GatewayError, InternalError, InvalidRequest, from_backend
from gateway.relay import ClientStalled, Relay
from gateway.reply import Caller, Reply, State
from gateway.route import Route, Routes
from gateway.salts import Salts
from gateway.settings import Config
from gateway.terms import Ask, Head, Principal, Record, Usage, milliseconds
from gateway.wire.answer import Translator
from gateway.wire.prefix import affinity


@dataclass(slots=True)
class Gateway:
    """The live objects a request meets. Mutable state: `live`, the requests under way; `alarms`."""

    config: Config
    keys: Keys
    routes: Routes
    admission: Admission
    account: Account
    bodies: accept.Bodies
    salts: Salts
    #: The largest body any model or team may be sent, in bytes.
    largest_body: int
    alarms: Alarms = field(default_factory=Alarms)
    live: set[Exchange] = field(default_factory=set)


class Errand(Struct):
    """An admitted request on its way.

    Mutable state: `route` and `translator`, those of the pool that is asked now; `reached`,
    whether an engine may have had it.
    """

    principal: Principal
    ask: Ask
    body: bytes
    demand: Demand
    route: Route
    translator: Translator
    reached: bool = False


class Exchange:
    """One request's life.

    Mutable state: `record`, what will be told of it; `_ending`, why it is ended from outside.
    """

    def __init__(
        self, gateway: Gateway, endpoint: Endpoint, head: Head, caller: Caller, began: float
    ) -> None:
        request_id = passing.request_id()
        self.record = Record(request_id=request_id, endpoint=endpoint.path)
        self.reply = Reply(caller, endpoint, request_id)
        self._gateway = gateway
        self._endpoint = endpoint
        self._head = head
        self._caller = caller
        self._began = began
        self._ending: GatewayError | None = None

    async def run(self, receive: accept.Receive) -> None:
        """Serve it. Raises only where the server itself cancels it."""
        self._caller.watcher = self
        self._gateway.live.add(self)
        try:
            await self._steps(receive)
        except GatewayError as exc:
            self._refuse(exc)
        except ClientStalled:
            self._caller.cut()
            self._refuse(ClientGone())
        except BackendError as exc:
            self._refuse(from_backend(exc))
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            self._refuse(self._ending)
        except Exception as exc:
            self._gateway.account.fault(self.record, exc)
            self._refuse(InternalError())
        finally:
            self._caller.watcher = None
            self._gateway.live.discard(self)
            self._gateway.account.close(self.record, self.reply, self._began)

    async def _steps(self, receive: accept.Receive) -> None:
        gateway, endpoint, head, record = self._gateway, self._endpoint, self._head, self.record
        record.client_request_id = passing.client_request_id(head)

        principal = await authenticate(head, gateway.keys, time.time())
        record.key, record.team = principal.key, principal.team
        accept.check_head(head, gateway.largest_body)
        with gateway.bodies.share() as share:
            try:
                body = await accept.body(
                    self._caller.take_body(),
                    receive,
                    share,
                    gateway.largest_body,
                    gateway.config.timeouts.body,
                )
            finally:
                record.bytes_in = share.size

            ask = endpoint.read(body)
            record.stream = ask.stream
            route = gateway.routes.resolve(ask, principal)
            record.model, record.pool = ask.model, route.pool.name
            large = share.size > accept.LARGE
            if large:
                await share.pause()
            translator = self._translator(principal, ask, body, route)
            if large:
                await share.pause()  # writing it anew is a step of its own
            elif not self._caller.at_once:
                # Until all that came in the same turn are read, too: so each half of the way is
                # taken with its code still in the processor's cache (docs/decisions/0010).
                await asyncio.sleep(0)

            permit = await gateway.admission.admit(
                record.request_id,
                principal,
                route,
                translator.size,
                tokens=endpoint.charges_tokens,
            )
            record.admit_ms = milliseconds(time.monotonic() - self._began)
            self.reply.standings = permit.standings
            self.reply.more_headers += permit.headers
            errand = Errand(principal, ask, body, permit.demand, route, translator)
            try:
                await self._send(errand)
            finally:
                failure = self._ending or sys.exception()
                if failure is not None:
                    self._not_served(permit, errand, failure)
                translator = errand.translator
                used = permit.settle(translator.usage, translator.events)
                if endpoint.charges_tokens:  # what was only counted, nobody has used
                    record.used(used)
                gateway.account.metrics.unknown_fields += translator.dropped

    def _translator(self, principal: Principal, ask: Ask, body: bytes, route: Route) -> Translator:
        """The request as it may go to the route's pool. Raises InvalidRequest."""
        caps = route.caps_for(principal.team)
        accept.check_size(body, caps.body)
        return self._endpoint.translator(ask, route, caps)

    async def _send(self, errand: Errand) -> None:
        """Send it to its pool; where no engine there can have had it, to the pools that take over.

        Raises the BackendError of the pool asked last.
        """
        principal, ask, body = errand.principal, errand.ask, errand.body
        failure = await self._send_to_pool(errand)
        for route in self._gateway.routes.fallbacks(errand.route):
            if failure is None:
                return
            try:
                errand.translator = self._translator(principal, ask, body, route)
            except InvalidRequest:
                continue  # for the model asked for it is good; this one cannot serve it
            errand.route = route
            failure = await self._send_to_pool(errand)
        if failure is not None:
            raise failure

    async def _send_to_pool(self, errand: Errand) -> BackendError | None:
        """Why another pool may be asked, None where all went well. Raises any other BackendError.

        That is where every replica is full or cannot be connected to, and the answer's head, which
        names the pool, has not left. What an engine may have had is never sent to a second pool.
        """
        ask, route, translator = errand.ask, errand.route, errand.translator
        record, head = self.record, self._head
        salt = self._gateway.salts.of(errand.principal, route, self._endpoint.path)
        if salt is not None:
            translator.set("cache_salt", salt)
        call = Call(
            path=self._endpoint.path,
            body=translator.request(route.upstream_model),
            stream=ask.stream,
            request_id=record.request_id,
            headers=passing.trace(head, record),
            again=passing.again(head),
        )
        deadline = passing.deadline(head, self._began, route.timeouts, ask.stream)
        alarms = self._gateway.alarms
        relay = Relay(self.reply, translator, route, ask.stream, deadline, self.gone, alarms)
        self._caller.watcher = relay
        try:
            with Turn(route.pool, self._demand(errand)) as turn:
                record.pool = route.pool.name
                try:
                    await turn.send(call, relay)
                finally:
                    errand.reached = errand.reached or relay.reached
                    record.attempts += turn.attempts
                    if relay.first_event:
                        record.first_event_ms = milliseconds(relay.first_event - self._began)
                    record.replica = turn.replica.url if turn.replica else ""
        except (ConnectFailed, NoReplica) as exc:
            if relay.reached or self.reply.state is not State.NONE:
                raise
            return exc
        finally:
            relay.close()
        return None

    def _demand(self, errand: Errand) -> Demand:
        """With its conversation, which costs time to tell, where the pool's policy wants that."""
        if not errand.route.pool.policy.by_affinity:
            return errand.demand
        told = affinity(self._endpoint.path, errand.ask.fields)
        return replace(errand.demand, affinity=told)

    def _not_served(self, permit: Permit, errand: Errand, exc: BaseException) -> None:
        """What a request costs of whose answer the caller saw nothing, by whose doing that was."""
        # What opens a stream of messages is no token yet; of a plain answer no events are counted.
        if self.record.first_event_ms and (errand.translator.events or not self.record.stream):
            return
        if isinstance(exc, BackendError):
            exc = from_backend(exc)
        if isinstance(exc, InvalidRequest):
            permit.settle(Usage(exact=True), 0)  # the engine refused it: a request, no tokens
        elif not isinstance(exc, ClientGone) or not errand.reached:
            permit.refund()

    # Endings from outside

    def gone(self) -> None:
        """The caller left: everything it holds is let go of, the engine first."""
        self.end(ClientGone())

    def pause(self) -> None:
        """Nothing flows before the relay is there to watch."""

    def resume(self) -> None:
        """As `pause`."""

    def end(self, exc: GatewayError) -> None:
        """Stop it wherever it is and tell the caller `exc`, if the caller can be told."""
        if self._ending is None:
            self._ending = exc
            self._caller.task.cancel()

    def _refuse(self, exc: GatewayError) -> None:
        if self.reply.state is State.ENDED:
            return  # it is answered; what failed since then is nobody's
        self.record.outcome = exc.outcome
        self.record.limited_by = exc.limited_by
        if self.reply.state is State.NONE:
            self.record.status = self._endpoint.status(exc)
        self.reply.refuse(exc)
