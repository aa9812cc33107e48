from asgi_agents import AgentResponse, Opcode, RequestCompleteEvent, WebSocketClose, WebSocketDrop, WebSocketFrameEvent
from example_app.rooms import Moderator


async def _say(agent: Moderator, text: str, connection: str = "1", *, by_client: bool = True) -> AgentResponse | None:
    return await agent.on_websocket_frame(
        WebSocketFrameEvent(
            correlation_id=connection,
            opcode=Opcode.TEXT,
            data=text.encode(),
            client_to_server=by_client,
            frame_index=0,
            client_ip="",
        )
    )


async def test_patience_ends_with_the_connection_and_is_each_connection_s_own() -> None:
    agent = Moderator(["moron"], patience=1)
    answers = [await _say(agent, "moron"), await _say(agent, "moron", "2"), await _say(agent, "moron")]
    assert [type(answer.websocket_decision) for answer in answers if answer] == [
        WebSocketDrop,
        WebSocketDrop,
        WebSocketClose,
    ]
    await agent.on_request_complete(
        RequestCompleteEvent(
            correlation_id="1",
            status=101,
            duration_ms=1,
            request_body_size=0,
            response_body_size=0,
            upstream_attempts=1,
        )
    )
    answer = await _say(agent, "moron")
    assert answer is not None
    assert isinstance(answer.websocket_decision, WebSocketDrop)


async def test_words_that_only_contain_an_insult_pass() -> None:
    assert await _say(Moderator(["moron"]), "oxymoronic") is None


async def test_what_the_room_says_is_not_judged_again() -> None:
    assert await _say(Moderator(["moron"]), "moron", by_client=False) is None
