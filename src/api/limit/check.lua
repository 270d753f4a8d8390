-- KEYS: where each limit counts this caller. ARGV: of each limit its algorithm, its limit and its window in µs. A
-- request that one of them refuses counts against none. The clock is that of Redis, so all who ask agree; its µs and
-- whatever is added to them are far below 2^53. Returns of each limit: 1 if it lets the request pass, how many more it
-- would, and ms until it lets more.
local algorithms = {sliding = sliding, fixed = fixed}
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local limits, pass = {}, 1
for i, key in ipairs(KEYS) do
  local algorithm, limit, window = algorithms[ARGV[3 * i - 2]], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local passed, left, at = algorithm.look(key, window, now)
  limits[i] = {take = algorithm.take, limit = limit, window = window, passed = passed, left = left, at = at}
  if passed >= limit then
    pass = 0
  end
end
local answer = {}
for i, limit in ipairs(limits) do
  if pass == 1 then
    limit.take(KEYS[i], limit.window, limit.at, limit.passed)
  end
  answer[3 * i - 2] = limit.passed < limit.limit and 1 or 0
  answer[3 * i - 1] = math.max(0, limit.limit - limit.passed - pass)
  answer[3 * i] = math.ceil(limit.left / 1000)
end
return answer
