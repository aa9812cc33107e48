from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def shop() -> str:
    return "welcome"
