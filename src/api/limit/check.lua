-- KEYS: where each limit counts this caller. ARGV: the algorithm, the limit and the window in µs of
-- each limit. A request that one limit refuses is counted by none. The clock is that of Redis, so
-- all instances agree. Times in µs, and sums of them, stay far below 2^53. Returns for each limit:
-- 1 if it lets the request pass, how many more requests it lets pass, and the ms until it lets more
-- pass.
local algorithms = {sliding = sliding, fixed = fixed}
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local limits, pass = {}, 1
for i, key in ipairs(KEYS) do
  local algorithm, limit, window = algorithms[ARGV[3 * i - 2]], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local passed, left, at = algorithm.count(key, window, now)
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
