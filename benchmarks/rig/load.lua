-- What wrk sends: POST /ingest/logs with each body of a file in turn, and each key of another one; both have one a line.
-- wrk … -- BODIES_FILE KEYS_FILE [ORIGIN]

local requests = {}
local turn = 0

local function read(name)
  local lines = {}
  for line in io.lines(name) do
    lines[#lines + 1] = line
  end
  return lines
end

function init(arguments)
  local bodies, keys = read(arguments[1]), read(arguments[2])
  for number = 0, math.max(#bodies, #keys) - 1 do
    local key = keys[number % #keys + 1]
    local headers = { ["Authorization"] = "Bearer " .. key, ["Content-Type"] = "application/json" }
    if arguments[3] then
      headers["Origin"] = arguments[3]
    end
    requests[#requests + 1] = wrk.format("POST", "/ingest/logs", headers, bodies[number % #bodies + 1])
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
