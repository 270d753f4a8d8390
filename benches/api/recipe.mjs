// The usual recipe: cache-aside, with ioredis in front of pg. The bench gives the SQL and both
// servers.
import express from 'express';
import { Redis } from 'ioredis';
import pg from 'pg';

const redis = new Redis(process.env.REDIS_URL);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const app = express();

async function read(id) {
  const { rows } = await pool.query({ text: process.env.READ_SQL, values: [id], rowMode: 'array' });
  return rows[0]?.[0];
}

// As the tutorials have it.
app.get('/users/:id', async (request, response) => {
  const key = `recipe:user:${request.params.id}`;
  const cached = await redis.get(key);
  if (cached !== null) {
    return response.json(JSON.parse(cached));
  }
  const user = await read(request.params.id);
  if (user === undefined) {
    return response.status(404).json({ error: 'not found' });
  }
  await redis.set(key, JSON.stringify(user), 'EX', 600);
  response.json(user);
});

// The same for an application that sends the cached text without parsing it.
app.get('/text/users/:id', async (request, response) => {
  const key = `recipe:user:${request.params.id}`;
  let text = await redis.get(key);
  if (text === null) {
    const user = await read(request.params.id);
    if (user === undefined) {
      return response.status(404).json({ error: 'not found' });
    }
    text = JSON.stringify(user);
    await redis.set(key, text, 'EX', 600);
  }
  response.type('json').send(text);
});

const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
