// What is in most sources of the command, read by the compiler once: a third of the time. Each source still includes
// what it uses, as -Db_pch=false shows.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <safering/checkpoint.hpp>
