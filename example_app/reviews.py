"""Reviews, which every customer reads: the handler asks an agent about a text before it keeps it."""

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel

from asgi_agents.fastapi import Agents

from .api_key import TAKES_KEY
from .observability import TracedRoute

router = APIRouter(prefix="/api/reviews", route_class=TracedRoute, dependencies=[TAKES_KEY])


class Review(BaseModel):
    item: str
    text: str


@router.get("")
async def list_reviews(request: Request) -> list[Review]:
    reviews: list[Review] = request.app.state.reviews
    return reviews


@router.post("", status_code=201)
async def create_review(request: Request, review: Review, agents: Agents) -> Review:
    await refuse_personal_data(review.text, agents)
    reviews: list[Review] = request.app.state.reviews
    reviews.append(review)
    return review


async def refuse_personal_data(text: str, agents: Agents) -> None:
    found = await agents.inspect_guardrail("pii", text, inspection_type="pii_detection")
    if found.detected:
        kinds = ", ".join(sorted({detection.category for detection in found.detections}))
        raise HTTPException(422, f"Please write it without personal data. Found: {kinds}")
