-- What wrk sends: POST /ingest/logs with the body in a file, with each key of another file in turn.
-- wrk … -- BODY_FILE KEYS_FILE [ORIGIN]

local requests = {}
local turn = 0

local function read(name)
  local file = assert(io.open(name, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(arguments)
  local body = read(arguments[1])
  for key in read(arguments[2]):gmatch("[^\n]+") do
    local headers = { ["Authorization"] = "Bearer " .. key, ["Content-Type"] = "application/json" }
    if arguments[3] then
      headers["Origin"] = arguments[3]
    end
    requests[#requests + 1] = wrk.format("POST", "/ingest/logs", headers, body)
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
