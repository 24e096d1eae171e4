// What is in most sources of the larger test programs, read by the compiler once for each program: a third of the time.
// Each source still includes what it uses, as -Db_pch=false shows. For programs that are optimised no further than 1: above,
// GCC 12 finds fault with the strings of its own library (its bug 105651) where its headers are precompiled.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <safering/async_saver.hpp>
#include <safering/checkpoint.hpp>
