//! The dynamo command.
