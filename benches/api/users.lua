-- Asks for the users in random order, and tells in one line what the bench reads.
local requests = {}

function init(args)
  math.randomseed(os.time())
  local prefix, users = args[1], tonumber(args[2])
  for user = 1, users do
    requests[user] = wrk.format("GET", prefix .. "/users/u" .. user)
  end
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d %d\n", summary.requests, summary.duration, broken, errors.status,
    latency:percentile(50), latency:percentile(99)))
end
