import java.math.BigDecimal;
import java.sql.CallableStatement;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import org.postgresql.util.PSQLException;

/**
 * Makes the calls with every type and in every way that the driver has, and prints what came of each:
 * Calls RECORDER_URL READER_URL
 */
class Calls {
    static final String START = "SELECT loader.record_execution_start(?)";
    static final String END = "SELECT loader.record_execution_end(?, ?, ?, ?)";

    interface Call {
        Object make() throws SQLException;
    }

    interface Binding {
        void bind(PreparedStatement statement) throws SQLException;
    }

    static void show(String what, Call call) {
        try {
            Object result = call.make();
            System.out.println(what + ": " + (result == null ? "null" : result.getClass().getSimpleName()));
        } catch (SQLException error) {
            System.out.println(what + ": " + error.getSQLState());
        }
    }

    static Object call(Connection db, String query, Binding binding) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement(query)) {
            binding.bind(statement);
            try (ResultSet result = statement.executeQuery()) {
                result.next();
                return result.getObject(1);
            }
        }
    }

    static long start(Connection db) throws SQLException {
        return (Long) call(db, START, statement -> statement.setLong(1, 1));
    }

    static Object end(Connection db, long run, String status, Binding rest) throws SQLException {
        return call(db, END, statement -> {
            statement.setLong(1, run);
            statement.setString(2, status);
            statement.setNull(3, Types.BIGINT);
            statement.setNull(4, Types.VARCHAR);
            rest.bind(statement);
        });
    }

    static void parameters(Connection db) throws SQLException {
        show("start, setLong", () -> call(db, START, s -> s.setLong(1, 1)));
        show("start, setInt", () -> call(db, START, s -> s.setInt(1, 1)));
        show("start, setShort", () -> call(db, START, s -> s.setShort(1, (short) 1)));
        show("start, setString", () -> call(db, START, s -> s.setString(1, "1")));
        show("start, setBigDecimal", () -> call(db, START, s -> s.setBigDecimal(1, BigDecimal.ONE)));
        show("start, setObject Integer", () -> call(db, START, s -> s.setObject(1, 1)));
        show("start, setObject null", () -> call(db, START, s -> s.setObject(1, null)));
        show("start, setNull", () -> call(db, START, s -> s.setNull(1, Types.BIGINT)));
        show("end, nulls", () -> end(db, start(db), "SUCCESS", s -> { }));
        show("end, setInt", () -> end(db, start(db), "SUCCESS", s -> s.setInt(3, 12)));
        show("end, setLong", () -> end(db, start(db), "SUCCESS", s -> s.setLong(3, 12)));
        show("end, setNull INTEGER", () -> end(db, start(db), "SUCCESS", s -> s.setNull(3, Types.INTEGER)));
        show("end, setObject null", () -> end(db, start(db), "SUCCESS", s -> s.setObject(3, null)));
        show("end, setBigDecimal", () -> end(db, start(db), "SUCCESS", s -> s.setBigDecimal(3, BigDecimal.TEN)));
        show("end, setString count", () -> end(db, start(db), "SUCCESS", s -> s.setString(3, "12")));
        show("end, text", () -> end(db, start(db), "FAILED", s -> s.setString(4, "naïve: \u2603")));
        show("end, text with NUL", () -> end(db, start(db), "FAILED", s -> s.setString(4, "a\0b")));
    }

    static void errors(Connection db) throws SQLException {
        long run = start(db);
        end(db, run, "SUCCESS", s -> { });
        error("ended", () -> end(db, run, "FAILED", s -> { }));
        error("status", () -> end(db, start(db), "DONE", s -> { }));
        error("count", () -> end(db, start(db), "SUCCESS", s -> s.setInt(3, -1)));
        error("unknown", () -> end(db, 123456789, "SUCCESS", s -> { }));
        error("loader", () -> call(db, START, s -> s.setLong(1, 99)));
    }

    static void error(String what, Call call) throws SQLException {
        try {
            call.make();
        } catch (PSQLException error) {
            var message = error.getServerErrorMessage();
            System.out.printf("error, %s: %s %s %b %b%n", what, error.getSQLState(), message.getConstraint(),
                message.getDetail() != null, message.getHint() != null);
        }
    }

    static void ways(String url) throws SQLException {
        for (String option : new String[] {"preferQueryMode=simple", "preferQueryMode=extended",
            "prepareThreshold=1", "prepareThreshold=-1", "prepareThreshold=0", "stringtype=unspecified"}) {
            try (Connection db = DriverManager.getConnection(url + "&" + option)) {
                for (int i = 0; i < 2; i++) {
                    show(option, () -> end(db, start(db), "SUCCESS", s -> s.setInt(3, 12)));
                }
            }
        }
        try (Connection db = DriverManager.getConnection(url + "&stringtype=unspecified")) {
            show("unspecified, setString", () -> call(db, START, s -> s.setString(1, "1")));
        }
        try (Connection db = DriverManager.getConnection(url)) {
            show("call escape", () -> {
                try (CallableStatement call = db.prepareCall("{? = call loader.record_execution_start(?)}")) {
                    call.registerOutParameter(1, Types.BIGINT);
                    call.setLong(2, 1);
                    call.execute();
                    return call.getLong(1);
                }
            });
            show("executeUpdate", () -> {
                try (PreparedStatement statement = db.prepareStatement(START)) {
                    statement.setLong(1, 1);
                    return statement.executeUpdate();
                }
            });
            show("batch", () -> {
                try (PreparedStatement statement = db.prepareStatement(START)) {
                    statement.setLong(1, 1);
                    statement.addBatch();
                    return statement.executeBatch();
                }
            });
            try (PreparedStatement statement = db.prepareStatement(END)) {
                statement.setLong(1, start(db));
                statement.setString(2, "SUCCESS");
                statement.setLong(3, 3_000_000_000L);
                statement.setNull(4, Types.VARCHAR);
                statement.execute();
                SQLWarning warning = statement.getWarnings();
                System.out.println("warning: " + warning.getSQLState() + " " + warning.getNextWarning());
            }
        }
        savepoints(url);
    }

    /** What autosave and savepoints do: an error in the middle, and the load goes on. */
    static void savepoints(String url) throws SQLException {
        for (String option : new String[] {"autosave=always", "autosave=always&cleanupSavepoints=true",
            "autosave=conservative", "autosave=never"}) {
            try (Connection db = DriverManager.getConnection(url + "&" + option)) {
                db.setAutoCommit(false);
                long run = start(db);
                Savepoint savepoint = option.endsWith("never") ? db.setSavepoint() : null;
                try (Statement statement = db.createStatement()) {
                    statement.execute("SELECT 1 / 0");
                } catch (SQLException error) {
                    if (savepoint != null) {
                        db.rollback(savepoint);
                    }
                }
                show(option, () -> {
                    Object duration = end(db, run, "SUCCESS", s -> s.setInt(3, 3));
                    db.commit();
                    return duration;
                });
            }
        }
    }

    static void read(String url) throws SQLException {
        try (Connection db = DriverManager.getConnection(url); Statement statement = db.createStatement()) {
            show("page", () -> call(db, "SELECT loader.get_execution_history(page_size => ?)", s -> s.setInt(1, 2)));
            String page = call(db, "SELECT loader.get_execution_history(page_size => ?)",
                s -> s.setInt(1, 2)).toString();
            System.out.println("page as text: " + page.startsWith("{\"executions\": ["));
            String next = page.replaceAll("(?s).*\"next_cursor\": \"([^\"]*)\".*", "$1");
            show("next page", () -> call(db, "SELECT loader.get_execution_history(page_size => ?, \"cursor\" => ?,"
                + " started_from => ?)", s -> {
                    s.setInt(1, 2);
                    s.setString(2, next);
                    s.setObject(3, OffsetDateTime.parse("2020-01-01T00:00:00Z"));
                }));
            try (ResultSet row = statement.executeQuery(
                "SELECT * FROM loader.execution_details WHERE NOT is_running LIMIT 1")) {
                row.next();
                ResultSetMetaData columns = row.getMetaData();
                System.out.print("row:");
                for (int i = 1; i <= columns.getColumnCount(); i++) {
                    Object value = row.getObject(i);
                    System.out.print(" " + columns.getColumnName(i) + "="
                        + (value == null ? "null" : value.getClass().getSimpleName()));
                }
                System.out.println();
                System.out.println("time: "
                    + row.getObject("execution_start", OffsetDateTime.class).getClass().getSimpleName());
            }
            try (ResultSet row = statement.executeQuery("SELECT * FROM loader.recorder_status()")) {
                row.next();
                System.out.println("status: " + row.getBoolean("preloaded") + " "
                    + row.getObject("worker_pid").getClass().getSimpleName() + " " + row.getString("detail"));
            }
            show("no right", () -> start(db));
        }
    }

    public static void main(String[] arguments) throws SQLException {
        try (Connection db = DriverManager.getConnection(arguments[0])) {
            parameters(db);
            errors(db);
        }
        ways(arguments[0]);
        read(arguments[1]);
    }
}
